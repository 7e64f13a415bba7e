"""Programs to start from: ``python -m fastrnn.examples.NAME``, their pages in ``docs/``.

char_lm, char_lm_parallel, language_models, tagger, shapes, seq2seq, why_gates, remedies, one_hot.
"""
