"""The commands of the command line: their options, what they run, and what they print.

Each module adds its commands to a parser. A command imports the code that it needs only when it
runs, so that ``npstream --help`` does not import NumPy.
"""
