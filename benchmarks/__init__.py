"""Measurements beside nginx, HAProxy and aiohttp, on one machine in one run: docs/performance.md.

rig      servers pinned to cores, wrk, and the kernel's account of CPU time
stands   who is measured: the gateway and what it is compared with, each with its configuration
peers    what most people would write with aiohttp
paths    `make bench`: the paths of a request, their targets, the table, the picture
million  `make bench-million`: a million people who wait
many     connections by the thousand, gateways by the handful, and how long a start takes
check    `make bench-check`: a new run against the committed figures
"""
