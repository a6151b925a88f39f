"""The words of the synthetic language: topics of everyday words, and words that nobody has seen before."""

import random
import zlib
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]
"""Which side of the fixed split a text, word or needle lies on; training never sees ``heldout``."""

HELDOUT_SHARE = 5
"""One text in this many is held out."""


def split_of(text: str) -> Split:
    """The side of the split that a text or word lies on: decided by its own characters, so the sides are disjoint.

    >>> split_of("Velmora") == split_of("velmora")
    True
    """
    return "heldout" if zlib.crc32(text.lower().encode()) % HELDOUT_SHARE == 0 else "train"


@dataclass(frozen=True)
class Topic:
    """Words that occur together: singular count nouns, regular verbs in the base form, adjectives."""

    name: str
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]


def _topic(name: str, nouns: str, verbs: str, adjectives: str) -> Topic:
    return Topic(name, tuple(nouns.split()), tuple(verbs.split()), tuple(adjectives.split()))


TOPICS: tuple[Topic, ...] = (
    _topic(
        "harbour",
        "boat anchor sail harbour captain sailor rope deck cargo lighthouse fisherman net wharf tide gull barrel mast"
        " ferry hull crane",
        "anchor load unload moor tow launch repair signal",
        "salty calm rusty wooden foggy heavy seaworthy crowded",
    ),
    _topic(
        "farm",
        "farmer field cow barn fence plough tractor crop meadow sheep goat hen orchard seed harvest shepherd stable"
        " haystack pasture pond",
        "harvest plant milk plough feed water fence gather",
        "fertile green muddy ripe early dry hungry rural",
    ),
    _topic(
        "kitchen",
        "cook kettle oven knife bowl spoon pan recipe soup loaf onion carrot apron cupboard table plate spice jar stove"
        " kitchen",
        "boil bake chop stir taste season serve peel",
        "sweet bitter warm spicy fresh sour crisp tender",
    ),
    _topic(
        "forest",
        "tree branch fox deer owl path hunter mushroom leaf root squirrel stream log clearing oak pine bird bear nest"
        " woodcutter",
        "climb follow track hide gather explore cross guard",
        "dark silent ancient mossy wild deep tall shady",
    ),
    _topic(
        "mountain",
        "peak climber glacier valley ridge cliff boulder avalanche summit guide hut slope cave pass eagle waterfall"
        " trail"
        " backpack ledge crevasse",
        "climb cross reach map scale descend conquer survey",
        "steep snowy rocky icy lonely high narrow dangerous",
    ),
    _topic(
        "market",
        "merchant stall coin basket customer price bargain carpet scale vendor crate bag queue trader shop lantern"
        " cloth"
        " ribbon sign market",
        "sell price trade weigh display wrap order deliver",
        "cheap busy noisy colourful costly honest popular rare",
    ),
    _topic(
        "school",
        "teacher pupil lesson desk book exam classroom blackboard pencil page question answer chapter library map globe"
        " uniform headmaster notebook corridor",
        "explain answer correct copy recite teach grade learn",
        "clever diligent strict curious difficult simple patient quiet",
    ),
    _topic(
        "hospital",
        "doctor nurse patient ward medicine bandage surgeon bed fever wound pill syringe ambulance clinic operation"
        " cure"
        " symptom stretcher pharmacy chart",
        "treat examine cure bandage visit comfort inspect warn",
        "sick pale healthy painful sterile careful weak urgent",
    ),
    _topic(
        "railway",
        "train station platform conductor ticket engine wagon tunnel bridge signal passenger timetable whistle track"
        " carriage porter suitcase driver junction bell",
        "board inspect repair delay announce uncouple drive greet",
        "late punctual crowded distant fast slow modern empty",
    ),
    _topic(
        "workshop",
        "carpenter hammer nail saw plank bench drill screw chisel toolbox apprentice hinge drawer ladder glue cabinet"
        " workshop lathe file bolt",
        "build hammer polish measure paint assemble sand fix",
        "sturdy sharp smooth crooked solid broken handmade useful",
    ),
    _topic(
        "library",
        "librarian shelf manuscript scroll reader catalogue novel poem atlas archive author index card letter diary"
        " dictionary margin title volume cover",
        "read borrow catalogue translate copy publish lend quote",
        "dusty rare long forgotten famous short printed valuable",
    ),
    _topic(
        "garden",
        "gardener rose tulip hedge shovel rake bee butterfly greenhouse lawn bulb petal weed sprinkler fountain bench"
        " vine wall herb pot",
        "water plant trim prune dig weed admire pick",
        "fragrant bright thorny shady lush delicate yellow neat",
    ),
    _topic(
        "court",
        "judge lawyer witness jury verdict clerk trial sentence prison law thief crime appeal document defendant oath"
        " statute fine guard courtroom",
        "accuse defend question sentence convict pardon summon suspect",
        "guilty innocent stern lawful false public lengthy fair",
    ),
    _topic(
        "theatre",
        "actor stage curtain costume script audience dancer scene mask role director ticket spotlight balcony play"
        " rehearsal chorus puppet prop dressing-room",
        "perform rehearse applaud direct stage praise imitate entertain",
        "dramatic comic tragic masked brilliant loud nervous splendid",
    ),
    _topic(
        "music",
        "violin drum piano singer flute melody concert orchestra string conductor harp tune trumpet composer note song"
        " rhythm organ cello choir",
        "play tune compose record conduct perform practise hum",
        "soft melodic harsh lively slow graceful electric solemn",
    ),
    _topic(
        "weather",
        "storm cloud rainbow thunderbolt breeze hail forecast umbrella raindrop snowflake puddle gale flood drought"
        " mist"
        " icicle thermometer barometer blizzard shower",
        "predict watch measure fear chase record avoid observe",
        "cloudy windy humid cold frosty stormy mild grey",
    ),
    _topic(
        "sea",
        "whale coral shell dolphin wave reef shark diver island crab seal lobster current beach octopus turtle seaweed"
        " pearl sponge lagoon",
        "follow discover observe catch circle collect chase photograph",
        "blue shallow tropical huge tiny slippery graceful hidden",
    ),
    _topic(
        "desert",
        "camel dune oasis nomad caravan scorpion cactus tent well lizard mirage palm canyon vulture snake bandit"
        " traveller"
        " saddle sandstorm waterskin",
        "cross wander saddle guide lead shelter pitch trust",
        "hot thirsty barren golden endless scorching dusty sandy",
    ),
    _topic(
        "army",
        "soldier general battle fort sword shield cannon trench uniform flag medal camp scout spear castle siege"
        " regiment"
        " drum victory helmet",
        "attack defend besiege march capture salute train destroy",
        "brave loyal armed wounded fierce proud weary hostile",
    ),
    _topic(
        "bank",
        "banker loan account vault cheque debt coin investor clerk ledger safe deposit budget receipt mortgage"
        " share tax"
        " profit customer auditor",
        "count deposit lend borrow audit invest sign collect",
        "rich poor careful annual private secret golden financial",
    ),
    _topic(
        "printing",
        "printer newspaper press headline editor page column ink reporter photograph article typesetter deadline"
        " pamphlet"
        " rumour magazine poster proof journalist edition",
        "print edit publish proofread distribute fold cut report",
        "daily weekly bold inky false recent glossy sensational",
    ),
    _topic(
        "mining",
        "miner shaft lamp pickaxe ore tunnel lode nugget shovel cart foreman vein drill quarry gem cavern explosion"
        " timber helmet furnace",
        "dig mine drill blast haul sort smelt discover",
        "deep dark precious heavy raw dangerous coppery damp",
    ),
    _topic(
        "weaving",
        "weaver loom thread needle cloth shuttle spindle pattern button tailor scarf coat sleeve dye wheel fabric hem"
        " pocket blanket tapestry",
        "weave sew spin dye mend stitch cut embroider",
        "woollen silky soft striped torn elegant scarlet plain",
    ),
    _topic(
        "astronomy",
        "star planet telescope comet moon astronomer orbit galaxy observatory meteor eclipse lens rocket satellite"
        " crater nebula constellation sunspot dome astronaut",
        "observe discover track name measure photograph chart predict",
        "distant bright faint round mysterious lunar solar visible",
    ),
)

IRREGULAR_PAST = {
    "sell": "sold", "read": "read", "teach": "taught", "lend": "lent", "feed": "fed", "hide": "hid", "build": "built",
    "dig": "dug", "catch": "caught", "lead": "led", "weave": "wove", "sew": "sewed", "spin": "spun", "cut": "cut",
    "drive": "drove", "quote": "quoted", "learn": "learned",
}  # fmt: skip
IRREGULAR_PLURAL = {
    "knife": "knives", "leaf": "leaves", "loaf": "loaves", "thief": "thieves", "shelf": "shelves", "sheep": "sheep",
    "deer": "deer", "fisherman": "fishermen", "foreman": "foremen",
}  # fmt: skip
_VOWELS = "aeiou"
_DOUBLED = {"trim", "chop", "stir", "hum", "wrap", "map"}


def plural(noun: str) -> str:
    """The plural of a count noun.

    >>> [plural(noun) for noun in ("boat", "knife", "branch", "ferry")]
    ['boats', 'knives', 'branches', 'ferries']
    """
    if noun in IRREGULAR_PLURAL:
        return IRREGULAR_PLURAL[noun]
    if noun.endswith("y") and noun[-2] not in _VOWELS:
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def third_person(verb: str) -> str:
    """The present tense of a verb for a singular subject.

    >>> [third_person(verb) for verb in ("load", "teach", "survey", "bury")]
    ['loads', 'teaches', 'surveys', 'buries']
    """
    if verb.endswith("y") and verb[-2] not in _VOWELS:
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh")) else "s")


def past(verb: str) -> str:
    """The past tense of a verb.

    >>> [past(verb) for verb in ("load", "bake", "carry", "trim", "teach")]
    ['loaded', 'baked', 'carried', 'trimmed', 'taught']
    """
    if verb in IRREGULAR_PAST:
        return IRREGULAR_PAST[verb]
    if verb in _DOUBLED:
        return verb + verb[-1] + "ed"
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in _VOWELS:
        return verb[:-1] + "ied"
    return verb + "ed"


def article(word: str) -> str:
    """The indefinite article that goes before a word.

    >>> article("apron"), article("uniform"), article("boat")
    ('an', 'a', 'a')
    """
    return "an" if word[0] in _VOWELS and not word.startswith(("uni", "use")) else "a"


_ONSETS = "b br c ch cl d dr f fl g gl gr h j k kl l m n p pl pr qu r s sh sk sl st str t th tr v w z".split()
_NUCLEI = "a a a e e e i i o o o u ai ea ee ia io ou y".split()
_CODAS = ["", "", "", "", "l", "m", "n", "r", "s", "t", "th", "nd", "rk", "ns", "ck", "x", "sh", "ll", "rt", "mp"]


def coin_word(rng: random.Random, split: Split, syllables: int | None = None) -> str:
    """A pronounceable lower-case word of 2 to 4 syllables that lies on the given side of the split.

    >>> word = coin_word(random.Random(0), "heldout")
    >>> split_of(word)
    'heldout'
    """
    while True:
        count = syllables or rng.choice((2, 2, 3, 3, 4))
        word = "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) for _ in range(count)) + rng.choice(_CODAS)
        if split_of(word) == split and 4 <= len(word) <= 14:
            return word
