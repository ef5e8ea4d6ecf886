"""Numbers in the fields of a recipe; a bool is none."""


def is_number(value: object) -> bool:
    """Tells whether a field holds a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_count(value: object, least: int) -> bool:
    """Tells whether a field holds a whole number that is at least so large.

    Example:
        >>> is_count(4, 0), is_count(-1, 0), is_count(True, 0), is_count(4.0, 0)
        (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
