import logging

# Before it is imported: where a home cannot be written, it remembers fonts for one process only, and works.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
