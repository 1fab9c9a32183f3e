"""How do the journal and the roster lie in the flash's littlefs?

Every write is durable when the call returns: closing a file is lfs2_file_sync, and a rename is atomic. One file is open at a
time, always in `with`: an unclosed file would be written later, by the finaliser. A failed write raises OSError.
"""
import os


class Storage:
    """Folders of small files below `root`, for nodecore.journal, and its note in a folder of its own.

    Alone in its folder the note has its own pair of metadata blocks: overwriting it never splits or copies anything else.
    """

    def __init__(self, root, note_root):
        self._root = root
        self._note = note_root + "/event"
        make_folder(root)
        make_folder(note_root)

    def read_note(self):
        """The note's bytes, b"" before the first."""
        try:
            os.stat(self._note)
        except OSError:
            return b""
        with open(self._note, "rb") as file:
            return file.read()

    def write_note(self, data):
        """Put `data` in the note's place; durable on return, and whole or not there at all."""
        with open(self._note, "wb") as file:
            if file.write(data) != len(data):
                raise OSError("flash took too few bytes")

    def folders(self):
        """Names of the folders."""
        return os.listdir(self._root)

    def names(self, folder):
        """Names of the files in a folder."""
        return os.listdir("%s/%s" % (self._root, folder))

    def make_folder(self, name):
        """Make a folder that is not there yet."""
        os.mkdir("%s/%s" % (self._root, name))

    def read(self, folder, name):
        """All bytes of a file."""
        with open("%s/%s/%s" % (self._root, folder, name), "rb") as file:
            return file.read()

    def append(self, folder, name, data):
        """Add bytes to the end of a file, made if need be; durable on return."""
        with open("%s/%s/%s" % (self._root, folder, name), "ab") as file:
            if file.write(data) != len(data):
                raise OSError("flash took too few bytes")

    def remove(self, folder, name):
        """Remove a file."""
        os.remove("%s/%s/%s" % (self._root, folder, name))


def make_folder(path):
    """Make a folder unless it is there."""
    try:
        os.stat(path)
    except OSError:
        os.mkdir(path)


def remove_file(path):
    """Remove a file if it is there; True when it was."""
    try:
        os.stat(path)
    except OSError:
        return False
    os.remove(path)
    return True


def rename(old, new):
    """Put `old` in the place of `new`, atomically."""
    os.rename(old, new)
