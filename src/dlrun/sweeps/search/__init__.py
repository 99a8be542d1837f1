"""Search: Optuna proposes the settings of the next run from what the earlier ones gave. Optuna is imported late.

space      what is fixed, what is searched, what is repeated
words      of the command line, from which the space is read
settings   of the search, and which of them go together
objective  what is searched for, and its value for a run
study      Optuna's side: storage, samplers, pruners
trial      one under way
source     trials as jobs of a sweep
batches    for launchers that take a batch of jobs at a time
perform    from the words to the summary
summary    what the search found
"""
