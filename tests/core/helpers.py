"""What does a core test need that plain `assert` does not give, on every interpreter?"""


def raises(error, call, *arguments):
    """Run `call(*arguments)`, which must raise `error` (a class); returns what it raised."""
    try:
        call(*arguments)
    except error as raised:
        return raised
    raise AssertionError("%s was not raised" % error.__name__)
