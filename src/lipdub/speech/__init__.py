"""Speech as the networks hear it: mel or features of the speech encoder, windows, memory, lip track. Nothing else knows them."""
