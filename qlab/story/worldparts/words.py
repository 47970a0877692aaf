"""Typed word lists of the story world: words of one list can replace one another."""

GIRLS = """Mia Lily Anna Zara Nina Rosa Emma Lucy Mei Aiko Priya Leila Sofia Ruby Clara Ada Ivy Nora
Hana Yara Amara Ines Freya Tara Lena Maya Olga Suki Wren Dora Elsa Fatima Gita Holly Iris Juno Kira
Lola Mira Nadia Opal Petra Rina Sara Tess Uma Vera Willa Xena Yuki Zoe Alma Bea Cleo""".split()
BOYS = """Tom Ben Sam Leo Max Omar Ravi Kenji Luca Finn Noah Ali Diego Hugo Ivan Jack Kofi Liam Milo
Nico Oscar Paul Rafi Tariq Theo Uri Victor Will Yusuf Zane Arlo Bruno Carlos Dan Eli Felix George
Henry Ian Jonas Karl Louis Marco Ned Otto Pedro Quinn Rob Simon Toby""".split()
# Names that any character may have, so that the name alone does not tell who it is.
ANIMAL_NAMES = """Pip Dot Biscuit Pepper Button Clover Hazel Bramble Nutmeg Pebble Poppy Rusty Smoky
Sunny Tansy Thimble Truffle Velvet Widget Ziggy Acorn Bubbles Copper Domino Ember Fern Ginger Honey
Jingle Kipper Mossy Nibbles Olive Patch Rolo Speck Tuppy Waffle""".split()
NAMES = GIRLS + BOYS + ANIMAL_NAMES
# Names that are words, too: at the start of a sentence ("Will you come?") they prove nothing.
ALSO_WORDS = frozenset(["Will", "Rob", "Max", "Holly", "Iris", "Ivy", "Ruby", *ANIMAL_NAMES])

CHILDREN = {"girl": "she", "boy": "he"}
ANIMALS = """fox rabbit mouse bear duck hedgehog cat dog squirrel owl turtle frog pig goat badger
otter goose lamb pony crow raccoon beaver""".split()
OTHERS = ["robot", "dragon", "giant"]
GROWN_UPS = [
    ("old baker", None),
    ("young farmer", None),
    ("old sailor", None),
    ("shepherd", None),
    ("clock maker", None),
    ("postman", "he"),
    ("gardener", None),
    ("old king", "he"),
    ("young queen", "she"),
    ("painter", None),
    ("fisherman", "he"),
    ("librarian", None),
]
# Heroes of openings that go on in the world (see ``qlab.story.bridges``).
THINGS = """clock spoon teapot kettle lamp chair train car boat truck bus plane kite ball balloon
pencil crayon book button shoe sock broom bell drum fiddle piano doll puppet toy snowman scarecrow
cloud star moon wave river hill mountain tree leaf flower seed pumpkin apple pancake cookie cake
house door key lantern candle bridge lighthouse windmill wheel bicycle umbrella backpack blanket
pillow mirror robot rocket cup plate bowl fork bottle box basket letter stamp map monster ghost
fairy elf troll witch wizard mermaid unicorn dinosaur elephant lion tiger monkey giraffe zebra
kangaroo penguin parrot whale dolphin fish shark crab octopus snail worm ant bee butterfly ladybug
spider caterpillar beetle cricket firefly bat wolf deer horse cow sheep hen rooster chick duckling
puppy kitten bunny cub hamster snake lizard camel donkey swan eagle sparrow robin seal
moose""".split()
PEOPLE = """king queen princess prince knight baker farmer fisherman sailor pirate captain painter
tailor shoemaker teacher doctor nurse cook gardener singer dancer clown juggler wizard miller
carpenter grandmother grandfather man woman child baby girl boy twin neighbor shepherd
hunter""".split()
PEOPLE_PRONOUNS = dict.fromkeys("queen princess grandmother woman girl".split(), "she") | (
    dict.fromkeys("king prince grandfather fisherman man boy".split(), "he")
)
SIZES = ["little", "small", "young", "tiny", "big", "tall", "round"]
TEMPERS = """kind quiet brave curious clever shy cheerful gentle careful playful patient
dreamy""".split()
# Tempers that do not go with another in one character.
OPPOSITES = {"shy": "brave", "brave": "shy", "careful": "playful", "playful": "careful"}

COLORS = "red blue green yellow white black silver golden orange purple brown pink gray".split()
# Small things that can be carried, lost and found.
OBJECTS = """kite ball key ring scarf hat drum bell book cup button ribbon whistle boat basket
lantern coin spoon mitten doll shell map feather flute box bottle clock blanket brush comb marble
mask necklace pencil pillow purse rope shoe top umbrella wagon watch puppet yo-yo bracelet candle
compass crown fan flag glove hammer jar mirror needle pan sled star stone sock cap coat""".split()
# What a plot needs of its object: that the wind can take it, or that it can break.
LIGHT = "kite scarf hat ribbon mitten map feather sock cap coat glove flag blanket fan".split()
BREAKABLE = """cup bell boat doll box bottle clock lantern mask mirror jar star crown whistle comb
bracelet puppet flute""".split()
OBJECTS_OF_PLOT = {"rescue": LIGHT, "broken": BREAKABLE}
FOODS = """bread cake soup honey apples berries cheese pie cookies nuts plums pears rice noodles
carrots jam pancakes porridge""".split()
COUNTED = [
    "apple",
    "pear",
    "plum",
    "nut",
    "cookie",
    "button",
    "shell",
    "coin",
    "egg",
    "carrot",
    "stone",
    "flower",
    "marble",
    "cherry",
    "feather",
    "seed",
]
PLURALS = {"cherry": "cherries"}
# What is kept for its own sake; the plural.
KEPT = "buttons shells coins stones marbles feathers stamps postcards corks".split()
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

# Place -> (phrase that says where, spots that exist there).
PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "garden": (
        "in the garden",
        ("under the rose bush", "behind the shed", "beside the well", "between the cabbages"),
    ),
    "forest": (
        "in the forest",
        (
            "under a fallen tree",
            "inside a hollow log",
            "among the ferns",
            "at the foot of a tall oak",
        ),
    ),
    "river": (
        "by the river",
        ("in the reeds", "under the wooden bridge", "on a flat rock", "in the mud at the bank"),
    ),
    "village": (
        "in the village",
        ("next to the fountain", "behind the bakery", "on the church steps", "under a cart"),
    ),
    "market": (
        "at the market",
        ("under the fruit stand", "behind a barrel", "among the sacks", "beside the flower cart"),
    ),
    "beach": (
        "on the beach",
        ("in a rock pool", "under an old boat", "in the sand near the water", "behind a big shell"),
    ),
    "hill": (
        "on the hill",
        ("behind a gray rock", "in the tall grass", "under the lonely tree", "near the stone wall"),
    ),
    "meadow": (
        "in the meadow",
        ("among the daisies", "beside the stream", "under a bush", "in a rabbit hole"),
    ),
    "farm": (
        "on the farm",
        ("in the hay", "behind the barn", "under the gate", "next to the duck pond"),
    ),
    "park": (
        "in the park",
        (
            "under the green bench",
            "behind the swings",
            "near the pond",
            "at the bottom of the slide",
        ),
    ),
    "school yard": (
        "in the school yard",
        ("under the stairs", "behind the fence", "in the sand box", "beside the old pump"),
    ),
    "orchard": (
        "in the orchard",
        ("under an apple tree", "in an empty crate", "beside the ladder", "among the leaves"),
    ),
    "lake": (
        "at the lake",
        ("under the dock", "in a small boat", "beside a willow tree", "among the water lilies"),
    ),
    "harbor": (
        "at the harbor",
        ("in a coil of rope", "behind a crate", "under a net", "on the deck of a ship"),
    ),
    "mill": (
        "at the old mill",
        (
            "under the big wheel",
            "behind the flour sacks",
            "on the dusty stairs",
            "beside the mill pond",
        ),
    ),
    "castle": (
        "at the castle",
        ("under the long table", "behind a curtain", "on the tower stairs", "beside the gate"),
    ),
    "island": (
        "on the island",
        ("under a palm tree", "in a small cave", "behind the dunes", "beside a pile of driftwood"),
    ),
    "valley": (
        "in the valley",
        (
            "beside the stream",
            "under a flat stone",
            "in the tall grass",
            "behind the shepherd's hut",
        ),
    ),
    "attic": (
        "in the attic",
        ("inside an old trunk", "behind a broken chair", "under a dusty rug", "on top of a shelf"),
    ),
    "kitchen": (
        "in the kitchen",
        ("under the table", "behind the stove", "in the bread box", "beside the broom"),
    ),
    "library": (
        "in the library",
        ("between two big books", "under a soft chair", "behind the desk", "on the lowest shelf"),
    ),
    "train station": (
        "at the train station",
        ("under a bench", "beside the ticket window", "behind a suitcase", "near the big clock"),
    ),
    "toy shop": (
        "in the toy shop",
        ("behind the teddy bears", "under the counter", "inside a drum", "beside the train set"),
    ),
    "mountain": (
        "on the mountain",
        ("behind a rock", "in a patch of snow", "at the mouth of a cave", "under a crooked pine"),
    ),
}
INDOORS = ("attic", "kitchen", "library", "toy shop")
WEATHER = {
    "sunny": (
        "The sun was shining",
        "It was a bright, warm day",
        "There was not a cloud in the sky",
    ),
    "rainy": ("Rain was tapping on the leaves", "It was a wet, gray day", "Soft rain was falling"),
    "windy": ("The wind was blowing hard", "It was a windy day", "The wind shook every tree"),
    "snowy": ("Snow was falling", "It was a cold, white day", "The ground was covered with snow"),
    "foggy": ("A thick fog lay over everything", "It was a misty day", "The fog hid the hills"),
}
# How the hero feels when things go wrong: what fits any plot, and what fits one.
FEELINGS_DOWN = "sad worried upset unhappy gloomy".split()
FEELINGS_OF_PLOT = {
    "shadow": ["scared", "afraid", "nervous"],
    "camp": ["scared", "afraid", "nervous"],
    "prank": ["ashamed", "sorry", "guilty"],
    "marble": ["ashamed", "sorry", "guilty"],
    "book": ["ashamed", "sorry", "scared"],
    "medal": ["ashamed", "guilty", "torn"],
    "broken": ["ashamed", "sorry", "scared"],
    "borrowed": ["tired", "torn", "ashamed"],
    "promise": ["ashamed", "sorry", "scared"],
    "fear": ["scared", "afraid", "nervous", "small"],
    "lie": ["ashamed", "guilty", "sorry"],
    "secret": ["ashamed", "sorry", "guilty"],
    "contest": ["nervous", "jealous", "small"],
    "storm": ["scared", "cold", "lonely"],
    "stranger": ["lonely", "left out", "alone"],
    "journey": ["lost", "tired", "helpless"],
    "rivals": ["cross", "lonely", "angry"],
    "share": ["torn", "cross", "unsure"],
    "gift": ["lonely", "left out", "jealous"],
    "grow": ["impatient", "cross", "silly"],
    "wish": ["foolish", "lonely", "scared"],
    "rescue": ["scared", "helpless", "small"],
    "echo": ["cross", "angry", "silly"],
    "sibling": ["jealous", "left out", "lonely"],
    "errand": ["tired", "helpless", "nervous"],
    "letter": ["ashamed", "sorry", "lonely"],
    "teach": ["ashamed", "silly", "small"],
    "door": ["cross", "silly", "helpless"],
    "seat": ["ashamed", "silly", "cross"],
    "hide": ["lonely", "forgotten", "scared"],
    "mess": ["ashamed", "helpless", "sorry"],
    "guest": ["shy", "unsure", "nervous"],
    "collection": ["cross", "angry", "helpless"],
    "build": ["ashamed", "tired", "silly"],
    "found": ["torn", "unsure", "sorry"],
    "mistaken": ["ashamed", "scared", "foolish"],
    "song": ["tired", "helpless", "foolish"],
}
FEELINGS_UP = "happy proud glad cheerful grateful calm joyful relieved merry content".split()
PROMISES = {
    "water the flowers": ("watered the flowers", "the flowers"),
    "feed the hens": ("fed the hens", "the hens"),
    "sweep the floor": ("swept the floor", "the floor"),
    "carry the wood": ("carried the wood", "the wood"),
    "bake a cake": ("baked a cake", "the cake"),
    "sing a song": ("sang a song", "the song"),
    "paint the fence": ("painted the fence", "the fence"),
    "tell a story": ("told a story", "the story"),
    "wash the cups": ("washed the cups", "the cups"),
    "pick the berries": ("picked the berries", "the berries"),
    "mend the net": ("mended the net", "the net"),
    "light the lamp": ("lit the lamp", "the lamp"),
}
FEARS = {
    "the dark": "walk through the dark",
    "deep water": "cross the deep water",
    "thunder": "go out in the thunder",
    "high places": "climb up high",
    "the big dog": "walk past the big dog",
    "loud noises": "stand in all that noise",
}
PLANTS = ["sunflower", "pumpkin", "bean plant", "apple tree", "rose", "tomato plant", "cherry tree"]
GAMES = ["race", "running race", "sack race", "hopping race", "egg race", "barrel race"]
WISHES = {
    "to be as tall as a house": ("could not fit through any door", "small again"),
    "to never be hungry": ("could not taste a thing", "hungry again"),
    "to fly like a bird": ("could not come down", "back on the ground"),
    "to eat nothing but candy": ("got a very sore belly", "well again"),
    "to stay awake for ever": ("was too tired to play", "sleepy again"),
    "to be invisible": ("found that nobody said hello", "seen again"),
}
# What can break.
MATERIALS = ["wooden", "glass", "clay", "stone", "china"]
CALLS = [
    "Hello there",
    "Good morning",
    "Good night",
    "Here I am",
    "Come and play",
    "Hooray for me",
    "Happy birthday",
]
BABIES = {"baby brother": "he", "baby sister": "she"}
# What one can learn -> what was done once it was learned.
SKILLS = {
    "swim": "swam",
    "ride a bicycle": "rode a bicycle",
    "read": "read",
    "skate": "skated",
    "juggle": "juggled",
    "row": "rowed",
    "walk on stilts": "walked on stilts",
    "knit": "knitted",
}
BUILDINGS = ["boat", "bridge", "tree house", "hut", "raft", "windmill", "little house", "swing"]
CUBS = "kitten puppy duckling chick piglet owlet gosling".split()
JOBS = ["captain", "cook", "doctor", "teacher", "singer", "judge", "magician"]
# Where somebody can hide, in any place.
HIDING = [
    "behind a stack of crates",
    "inside an empty barrel",
    "under a heap of old sacks",
    "behind a pile of wood",
    "inside a big wooden chest",
]
# First line -> second line.
SONGS = {
    "Row, little moon, on your river of light": "and bring me a dream in the middle of night",
    "Sleep, little seed, in your bed in the ground": "and wake when the rain makes its soft sound",
    "Round goes the wheel and the water runs by": "and up goes the lark to the top of the sky",
    "Dance, little flame, till the morning is here": "for nobody dances alone, my dear",
    "Come, little cloud, let me sit on your back": "and bring me back home in a soft cotton sack",
    "Slow goes the snail, and the world is so wide": "and yet he comes home to his supper inside",
}
