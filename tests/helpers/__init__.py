"""What tests and their data are built with; nothing here is shipped."""
