"""Do the core's tests pass on this interpreter?

`run.py [-v] [module ...]`, under CPython, MicroPython and MicroPython in WebAssembly. Without names it runs every
`test_*.py` that lies beside it. A test is a function `test_*` without parameters that uses plain `assert`. Prints each
failure with its traceback, with `-v` each test that passed, and a closing line; the exit status says whether all passed.
"""
import os
import sys


def interpreter():
    """Name, version and size of a machine word."""
    version = ".".join([str(part) for part in sys.implementation.version[:3]])
    return "%s %s, %d bits" % (sys.implementation.name, version, 32 if sys.maxsize == 2**31 - 1 else 64)


def modules_beside():
    """Names of the test modules in this file's folder."""
    # Neither MicroPython has os.path, and the one in WebAssembly is not told a path with a folder.
    folder = __file__.rpartition("/")[0] or "."
    return sorted([name[:-3] for name in os.listdir(folder) if name.startswith("test_") and name.endswith(".py")])


def print_traceback(error):
    """CPython and MicroPython each have their own function for it."""
    if hasattr(sys, "print_exception"):
        sys.print_exception(error)
    else:
        import traceback
        traceback.print_exception(error, file=sys.stdout)


def run_module(name, verbose):
    """(passed, failed) of one module's tests."""
    passed = failed = 0
    module = __import__(name)
    for test in sorted([test for test in dir(module) if test.startswith("test_")]):
        try:
            getattr(module, test)()
        except Exception as error:
            failed += 1
            print("failed %s.%s" % (name, test))
            print_traceback(error)
        else:
            passed += 1
            if verbose:
                print("passed %s.%s" % (name, test))
    return passed, failed


def main(arguments):
    """Number of failures; a module that can't be imported or that holds no test is one."""
    names = [name for name in arguments if name != "-v"] or modules_beside()
    passed_total = failed_total = 0
    for name in names:
        try:
            passed, failed = run_module(name, "-v" in arguments)
        except Exception as error:
            passed, failed = 0, 1
            print("failed %s, at import" % name)
            print_traceback(error)
        if passed + failed == 0:
            failed = 1
            print("failed %s, it holds no test" % name)
        passed_total += passed
        failed_total += failed
    print("core: %d passed, %d failed on %s" % (passed_total, failed_total, interpreter()))
    return failed_total


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
