"""Workloads on an emulated machine, as the command line has them; usable from Python as well.

bomb      fork a real program generation by generation -> BombReport
compare   one workload under each way to make a process -> CompareReport
startup   a program at its first instruction -> ExecReport
report    what they return, and as JSON
tables    the same for a terminal (rich)
"""
