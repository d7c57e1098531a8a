"""What training steps share: rows, batches, a loop that goes on where it was killed, adapters."""
