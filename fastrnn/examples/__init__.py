"""Programs to start from: ``python -m fastrnn.examples.NAME``, their pages in ``docs/``.

char_lm, language_models, tagger, shapes, seq2seq.
"""
