"""Passes its input values to its child, and answers with the child's SRUID and answer."""


def run(analysis):
    child = analysis.children["child"]
    answer, _ = child.ask(input_values=analysis.input_values)
    analysis.output_values = {"child": child.id, "answer": answer["output_values"]}
