"""The most that can be pruned inside an envelope, by bisection over forks of one run. docs/search.md describes it.

quantity     what is searched, and the values of it that the model can have
bisection    which of them comes next
plan         from a command line to all of that, and to the command of every run
judged       what a finished run is beside the envelope
search       the runs, one after another, and their record
report       the table, and what it says
"""
