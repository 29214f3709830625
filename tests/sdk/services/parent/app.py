"""Asks its child what it is asked, and says which child that was."""


def run(analysis):
    child = analysis.children["child"]
    answer, _ = child.ask(input_values=analysis.input_values)
    analysis.output_values = {"child": child.id, "answer": answer["output_values"]}
