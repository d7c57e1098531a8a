"""Predictive models: tensors over the Open Inference Protocol, and texts to encoders."""
