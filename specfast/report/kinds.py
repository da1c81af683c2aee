"""The kinds of things that can be shown; light, so that the command line can list them."""

RASTERS = ("scene", "classes", "continuous", "embedding")
FOLDERS = ("pretrain", "finetune", "probe", "maps")
KINDS = (*RASTERS, "confusion", "table", "losses", *FOLDERS)
