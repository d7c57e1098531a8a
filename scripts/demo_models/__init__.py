"""What `scripts/train_demo_models.py` is made of: the tasks, the training and the export."""
