"""What is run on a machine with an NVIDIA GPU: ``make gpu``, or ``python -m bench.gpu``."""
