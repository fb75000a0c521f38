"""The checker of annotations while testing: beartype, with int accepted for float as type checkers do."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
