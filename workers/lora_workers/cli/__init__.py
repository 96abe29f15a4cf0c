"""The command line, one file per group of commands.

app             all commands together; errors become exit codes here
output          JSON, tables, findings, errors and exit codes
options         options that several commands share, and opening the registry with the settings
checking        check
registering     register, status
published       list, show, alias
bases           base add, base list, base show
watching        watch
dead_letters    dead-letters list, show, retry
running         worker, dispatcher, admit
machine         up, demo
explaining      explain
code_page       the pages of codes and of engine rules under deploy/docs
"""
