"""Speed of fastrnn beside torch.nn: ``python -m bench.run``; method and log in NOTES.md."""
