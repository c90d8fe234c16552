"""Fits of a potential to DFT frames and to what was measured, in one training."""
