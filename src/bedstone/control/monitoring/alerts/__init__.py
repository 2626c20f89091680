"""Alerts: rules, their state by second, and who has been told of what.

`rules` are what is declared, `evaluation` asks what holds in a second, `machine` is the life of an
alert, `board` holds them all, `groups` decides what is to be told, and `webhook` in which words.
None of them does I/O; the server's `alerting` does.
"""
