"""What the 0 of a number, or an empty text, stands for: `js/looks/zero.js` writes it in the value's place.

The value itself stays, so saved workflows and API graphs are as they were.
"""

KEY = "fewstep_zero"  # of an input's options, which the host hands on to the interface
AUTO = {KEY: "auto"}  # the node finds the value, and the interface says which one where it can
OFF = {KEY: "off"}
ALL = {KEY: "all"}
