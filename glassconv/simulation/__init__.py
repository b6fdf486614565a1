"""Making configurations: the Kob-Andersen model, its inherent structures, molecular dynamics.

Import what is needed from the submodules; nothing is loaded here, so that optional packages stay optional.
"""
