"""The metrics of a program, as Prometheus reads them."""

import asyncio
import urllib.request

from kit.waiting import patience
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """The answer to one reading of the metrics port."""

    def __init__(self, text):
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name, **labels):
        return self.samples.get((name, frozenset(labels.items())))

    def all(self, name, label):
        """The values of a metric by one of its labels, or by several."""
        names = (label,) if isinstance(label, str) else label
        return {
            tuple(dict(labels)[name] for name in names)
            if len(names) > 1
            else dict(labels)[label]: value
            for (sample, labels), value in self.samples.items()
            if sample == name
        }


async def scrape(port):
    def read():
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/metrics", timeout=patience(10)
        ) as answer:
            return answer.read().decode()

    return Scrape(await asyncio.to_thread(read))
