"""specfast within other packages: TorchGeo, TerraTorch, Lightning, the Hugging Face hub. Import the one that is needed.

Each imports its package only where that is used; :mod:`specfast.integrations.lightning`, whose classes derive from
Lightning's, when it is imported.
"""
