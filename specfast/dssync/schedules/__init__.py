"""The schedule families, one file each: functions that return the rounds of a period. ``schedule.py`` is the door."""
