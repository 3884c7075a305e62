"""How a table of item vectors fills its space, beside what chance gives, and whether two tables mean the same items
alike. Pure functions of float arrays (I, D), a row per item; nothing here is trained.
"""
