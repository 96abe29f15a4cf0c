"""The command line, one file per group of commands.

app             all commands together; errors become exit codes here
output          JSON, tables, findings, errors and exit codes
options         options that several commands share, and opening the registry with the settings
checking        check
registering     register, status
published       list, show, alias
changing        retire, rollback, promote, label, keep-last
collecting      collection
bases           base add, base list, base show
watching        watch
fleet           nodes, rollout
dead_letters    dead-letters list, show, retry
storing         store list, verify, gc
namespaces      namespace; tokens: token
hooks           hooks list, show, redeliver; resyncing: resync
running         worker, dispatcher, gateway, admit
node_process    node
machine         up, demo, demo-files
explaining      explain
code_page       the pages of codes and of engine rules under deploy/docs
"""
