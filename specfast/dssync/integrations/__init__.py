"""DS-Sync within other ways to train: DDP and FSDP2 of torch, Lightning, Accelerate. Import the one that is needed."""
