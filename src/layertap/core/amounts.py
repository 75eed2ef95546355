"""Numbers of things in words: `1 shard`, `12 shards`."""


def amount(number: int, thing: str, form: str = "") -> str:
    """Say how many there are; `form` is how the number is written, such as "," for thousands."""
    return f"{number:{form}} {thing}{'' if number == 1 else 's'}"
