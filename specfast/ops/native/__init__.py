"""Operators through the extension specfast._C: tensors become addresses, sizes and strides here, and only here."""
