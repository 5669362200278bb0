"""Services: what frontends there are and which backends serve whom. Pure."""
