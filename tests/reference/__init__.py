"""The float64 reference: plain numpy, written to be read, and slow on purpose.

Every op and the whole model, implemented from the papers and the published model code,
independently of the native engine. Test modules import it as ``from reference import ops``
(``tests/conftest.py`` puts this directory's parent on the import path).
"""
