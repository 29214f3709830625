"""Answers with numbers that JSON cannot represent."""


def run(analysis):
    infinity = float("inf")
    analysis.output_values = {"nan": float("nan"), "ends": [infinity, -infinity], "one": 1.0}
