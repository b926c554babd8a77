"""What a person tells a study while agents work on it: to pause, to go on, to stop."""

from enum import Enum

from harness.sweep.ledger import Ledger


class Order(Enum):
    """Agents look between two steps: a trial that is cut short goes back, and nothing is lost."""

    GO = "go"
    PAUSE = "pause"  # agents stay, and wait
    STOP = "stop"  # agents leave


def order_of(ledger: Ledger) -> Order:
    """The last order that was given."""
    return Order(ledger.get("order", Order.GO.value))


def give(ledger: Ledger, order: Order) -> None:
    """Tell every agent of the study, wherever it runs."""
    ledger.set("order", order.value)
