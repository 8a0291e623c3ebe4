"""Speech as the networks hear it. Nothing else knows mel."""
