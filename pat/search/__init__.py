"""The most that can be pruned inside an envelope, by bisection over forks of one run. docs/search.md describes it.

quantity     what is searched, and the values of it that the model can have
bisection    which of them comes next
plan         builds all of that, and the command of every run, from a command line
judged       judges a finished run by the envelope
search       the runs, one after another, and their record
report       the table and the answer
"""
