"""The commands of the command line: their options, what they run, and what they print.

Each module adds its commands to a parser and imports what they run only when they run, so that
``npstream --help`` imports no NumPy.
"""
