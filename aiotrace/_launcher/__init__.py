"""How a program is started under aiotrace, its children, and the process that reads its arena."""
