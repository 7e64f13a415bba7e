"""Programs to start from: ``python -m fastrnn.examples.char_lm``."""
