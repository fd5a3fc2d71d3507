"""What people see of a campaign: the report page and the live view in the terminal. Reads plain data only."""
