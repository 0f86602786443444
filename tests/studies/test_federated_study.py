"""The study runs; what it claims of numbers is kept in evidence."""

from kinema import studies


def test_smoke():
    evidence = studies.run("federated-momentum", "smoke")
    found = {metric.name: metric for metric in evidence.metrics}
    assert found["distance to the closed fixed points, worst rule"].met
    assert 0.1 < found["accuracy, SCAFFOLD-M"].measured.mean < 1
    assert evidence.tables[0].title == "Digits, 3 of 10 clients a round"
    biases = {row[0]: row[1].mean for row in evidence.tables[-1].rows}
    assert biases.keys() == {"SCAFFOLD", "SCAFFOLD-M", "SCAFFOLD-M-VR"} and max(biases.values()) < 1e-12
