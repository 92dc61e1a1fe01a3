"""The pages with which people use it all: owners, storage nodes, members of the DAO, operators, everybody."""
