"""How numbers are said in sentences."""


def counted(number: int, word: str, several: str = "") -> str:
    """Return a number of things in words, such as ``1 run`` or ``1,200 products``."""
    return f"{number:,} {word if number == 1 else several or f'{word}s'}"
