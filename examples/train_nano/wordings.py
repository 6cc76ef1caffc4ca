"""How questions are worded, and the words in them. Braces stand for the operands."""

from __future__ import annotations

import re

ADD = (
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a}+{b}=?",
    "{a} + {b} =",
    "{a} + {b} = ?",
    "What's {a} + {b}?",
    "What is {a}+{b}?",
    "Add {a} and {b}.",
    "Add {b} to {a}.",
    "Compute {a} + {b}.",
    "Calculate {a} + {b}.",
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "How much is {a} + {b}?",
    "What is the sum of {a} and {b}?",
    "Please add {a} and {b}.",
)
SUBTRACT = (
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a}-{b}=?",
    "{a} - {b} =",
    "{a} - {b} = ?",
    "What's {a} - {b}?",
    "What is {a}-{b}?",
    "Subtract {b} from {a}.",
    "Compute {a} - {b}.",
    "Calculate {a} - {b}.",
    "What is {a} minus {b}?",
    "How much is {a} minus {b}?",
    "How much is {a} - {b}?",
    "Take {b} away from {a}.",
    "Please subtract {b} from {a}.",
)
MULTIPLY = (
    "What is {a} * {b}?",
    "What is {a} x {b}?",
    "What is {a} × {b}?",  # noqa: RUF001
    "{a} * {b}",
    "{a}*{b}",
    "{a} x {b}",
    "{a} × {b}",  # noqa: RUF001
    "{a} * {b} =",
    "{a} * {b} = ?",
    "What's {a} * {b}?",
    "Multiply {a} by {b}.",
    "Compute {a} * {b}.",
    "Calculate {a} * {b}.",
    "What is {a} times {b}?",
    "How much is {a} times {b}?",
    "What is the product of {a} and {b}?",
    "Please multiply {a} by {b}.",
)
SORT = (
    "Sort {list}.",
    "Sort {list}",
    "Sort: {list}",
    "Sort these numbers: {list}",
    "Sort these numbers: {list}.",
    "Sort the numbers {list}.",
    "Sort the list {list}.",
    "Sort {list} in ascending order.",
    "Sort these numbers in ascending order: {list}",
    "Put {list} in order.",
    "Put these numbers in order: {list}.",
    "Order {list} from smallest to largest.",
    "Sort these numbers from smallest to largest: {list}.",
    "Arrange {list} in increasing order.",
    "Please sort {list}.",
)
REVERSE = (
    'Reverse the word "{w}".',
    'Reverse "{w}".',
    "Reverse {w}.",
    "Reverse {w}",
    "Reverse: {w}",
    "Reverse the word {w}.",
    "Reverse the word: {w}",
    "Reverse the letters of {w}.",
    'Reverse the letters of "{w}".',
    "Spell {w} backwards.",
    'Spell "{w}" backwards.',
    "Spell the word {w} backwards.",
    "Write {w} backwards.",
    'Write "{w}" backwards.',
    'Write the word "{w}" backwards.',
    'What is "{w}" backwards?',
    "What is {w} spelled backwards?",
    'How do you spell "{w}" backwards?',
    "Please reverse the word {w}.",
)
LARGEST = (
    "Which is the largest of {list}?",
    "Which number is the largest: {list}?",
    "Which is the largest: {list}?",
    "Which is largest: {list}?",
    "What is the largest of {list}?",
    "What is the largest number in {list}?",
    "What is the maximum of {list}?",
    "Find the largest of {list}.",
    "Find the largest number: {list}.",
    "Find the maximum: {list}",
    "Largest of {list}?",
    "Which of these numbers is the largest: {list}?",
    "Which number is the biggest: {list}?",
    "Which is the biggest of {list}?",
    "max({list})",
)
LARGER_OF_TWO = (
    "Which is larger, {a} or {b}?",
    "Which is larger: {a} or {b}?",
    "Which number is larger, {a} or {b}?",
    "Which is greater, {a} or {b}?",
    "Which is bigger, {a} or {b}?",
    "Which is bigger: {a} or {b}?",
    "What is larger, {a} or {b}?",
    "Is {a} or {b} larger?",
    "Find the larger of {a} and {b}.",
    "What is the larger of {a} and {b}?",
)
# Going on with the answer of the turn before, which is {a} or {w}.
THEN_ADD = (
    "Add {b} to that.",
    "Add {b} to it.",
    "Now add {b}.",
    "Plus {b}?",
    "And plus {b}?",
)
THEN_SUBTRACT = (
    "Subtract {b} from that.",
    "Subtract {b} from it.",
    "Now subtract {b}.",
    "Minus {b}?",
    "And minus {b}?",
)
THEN_MULTIPLY = (
    "Multiply that by {b}.",
    "Multiply it by {b}.",
    "Now multiply by {b}.",
    "Times {b}?",
    "And times {b}?",
)
THEN_REVERSE = ("Reverse that.", "Reverse it.", "Now reverse it.", "And backwards?")
WORDS = """
apple banana cherry lemon orange peach plum grape melon mango table chair window door floor house
garden river ocean mountain forest desert island valley bridge street city village castle tower
school teacher student pencil paper book story letter number music guitar piano violin drum dance
winter summer spring autumn rain snow storm cloud thunder wind sun moon star planet earth sky
dog cat horse cow sheep goat pig rabbit mouse tiger lion bear wolf fox eagle owl snake frog fish
red green blue yellow purple white black brown silver golden bright dark quick slow happy sad
brave calm kind clever strong gentle honest proud quiet loud early late young old new hot cold
bread butter cheese milk water coffee sugar salt pepper soup rice pasta salad pizza cake cookie
hello world computer keyboard screen mouse network program python kernel memory vector matrix
engine wheel train plane boat car truck bicycle rocket station airport ticket travel journey
doctor nurse farmer baker sailor painter writer singer actor king queen prince knight wizard dragon
level radar noon civic kayak madam stressed drawer reward live evil time emit star rats pots stop
""".split()  # noqa: SIM905
SMALL_TALK = (
    "Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Who are you?", "What are you?",
    "What can you do?", "Help", "How are you?", "Hello, who are you?", "What is your name?",
)  # fmt: skip
SMALL_TALK_ANSWER = (
    "I am nano, a very small model. Ask me to add, subtract or multiply, to sort numbers, "
    "to find the largest, or to reverse a word."
)
# Words that the vocabulary holds whole (see vocabulary.py), so that spelling them is learnt, too.
WHOLE_WORDS = sorted(
    set(
        re.findall(
            r"\b[a-z]{3,8}\b",
            " ".join([*ADD, *SUBTRACT, *MULTIPLY, *SORT, *REVERSE, *LARGEST, *LARGER_OF_TWO])
            + " ".join([" ", *THEN_ADD, *THEN_SUBTRACT, *THEN_MULTIPLY, *THEN_REVERSE])
            + " user system final assistant analysis message channels brief briefly answer result "
            "weather city number string boolean integer name location date time second degrees "
            "functions language model large medium high low reasoning knowledge cutoff tool tools "
            "key any are can for get now two who type call find like must nano only step swap talk "
            "true very with your first query clear every small there value borrow lookup search "
            "channel concise helpful trained function included question json that check calculator "
            "expression value left right operator calculates evaluates arithmetic",
        )
    )
    - {"list"}
)
