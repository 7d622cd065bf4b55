"""Which words does the embedded corpus know?

The tables are plain text, written as a dictionary prints its entries, so that a person can
extend them: English left of `=`, German right. A new line is a new word, nothing else has to
change but `grammar.VERSION`; `inflection` reads them and makes all other forms. Leave out
English words whose forms coincide (sheep, fish; read, read, read): their translation would be
a guess, and every sentence here has exactly one.
"""

# singular, plural = nominative with its article, ending of the genitive, plural.
# A genitive in -n or -en marks a weak noun: it takes that ending in every case but one.
NOUN_TABLES = {
    "person": """
        man, men = der Mann, -es, Männer
        woman, women = die Frau, -, Frauen
        child, children = das Kind, -es, Kinder
        boy, boys = der Junge, -n, Jungen
        teacher, teachers = der Lehrer, -s, Lehrer
        doctor, doctors = der Arzt, -es, Ärzte
        neighbor, neighbors = der Nachbar, -n, Nachbarn
        student, students = der Student, -en, Studenten
        friend, friends = der Freund, -es, Freunde
        brother, brothers = der Bruder, -s, Brüder
        sister, sisters = die Schwester, -, Schwestern
        mother, mothers = die Mutter, -, Mütter
        father, fathers = der Vater, -s, Väter
        daughter, daughters = die Tochter, -, Töchter
        son, sons = der Sohn, -es, Söhne
        farmer, farmers = der Bauer, -n, Bauern
        princess, princesses = die Prinzessin, -, Prinzessinnen
        king, kings = der König, -s, Könige
        queen, queens = die Königin, -, Königinnen
        guest, guests = der Gast, -es, Gäste
        colleague, colleagues = der Kollege, -n, Kollegen
        baker, bakers = der Bäcker, -s, Bäcker
        policewoman, policewomen = die Polizistin, -, Polizistinnen
        aunt, aunts = die Tante, -, Tanten
        uncle, uncles = der Onkel, -s, Onkel""",
    "animal": """
        dog, dogs = der Hund, -es, Hunde
        cat, cats = die Katze, -, Katzen
        horse, horses = das Pferd, -es, Pferde
        bird, birds = der Vogel, -s, Vögel
        mouse, mice = die Maus, -, Mäuse
        goat, goats = die Ziege, -, Ziegen
        bear, bears = der Bär, -en, Bären
        cow, cows = die Kuh, -, Kühe
        rabbit, rabbits = das Kaninchen, -s, Kaninchen
        fox, foxes = der Fuchs, -es, Füchse
        pig, pigs = das Schwein, -es, Schweine""",
    "thing": """
        newspaper, newspapers = die Zeitung, -, Zeitungen
        car, cars = das Auto, -s, Autos
        bicycle, bicycles = das Fahrrad, -es, Fahrräder
        table, tables = der Tisch, -es, Tische
        chair, chairs = der Stuhl, -es, Stühle
        lamp, lamps = die Lampe, -, Lampen
        key, keys = der Schlüssel, -s, Schlüssel
        picture, pictures = das Bild, -es, Bilder
        bag, bags = die Tasche, -, Taschen
        bottle, bottles = die Flasche, -, Flaschen
        hat, hats = der Hut, -es, Hüte
        coat, coats = der Mantel, -s, Mäntel
        shirt, shirts = das Hemd, -es, Hemden
        watch, watches = die Uhr, -, Uhren
        flower, flowers = die Blume, -, Blumen
        ball, balls = der Ball, -es, Bälle
        knife, knives = das Messer, -s, Messer
        map, maps = die Karte, -, Karten
        gift, gifts = das Geschenk, -es, Geschenke
        ring, rings = der Ring, -es, Ringe
        machine, machines = die Maschine, -, Maschinen
        computer, computers = der Computer, -s, Computer""",
    "text": """
        book, books = das Buch, -es, Bücher
        letter, letters = der Brief, -es, Briefe
        story, stories = die Geschichte, -, Geschichten
        song, songs = das Lied, -es, Lieder
        poem, poems = das Gedicht, -es, Gedichte""",
    "food": """
        apple, apples = der Apfel, -s, Äpfel
        cake, cakes = der Kuchen, -s, Kuchen
        egg, eggs = das Ei, -es, Eier
        pear, pears = die Birne, -, Birnen
        carrot, carrots = die Karotte, -, Karotten
        sandwich, sandwiches = das Brötchen, -s, Brötchen
        tomato, tomatoes = die Tomate, -, Tomaten
        orange, oranges = die Orange, -, Orangen""",
    "place": """
        house, houses = das Haus, -es, Häuser
        garden, gardens = der Garten, -s, Gärten
        school, schools = die Schule, -, Schulen
        city, cities = die Stadt, -, Städte
        kitchen, kitchens = die Küche, -, Küchen
        forest, forests = der Wald, -es, Wälder
        village, villages = das Dorf, -es, Dörfer
        hotel, hotels = das Hotel, -s, Hotels
        museum, museums = das Museum, -s, Museen
        church, churches = die Kirche, -, Kirchen
        castle, castles = das Schloss, -es, Schlösser
        office, offices = das Büro, -s, Büros
        room, rooms = das Zimmer, -s, Zimmer
        library, libraries = die Bibliothek, -, Bibliotheken
        park, parks = der Park, -s, Parks""",
}

# positive, comparative = positive, comparative = what it can be said of ("-": no comparative)
ADJECTIVE_TABLE = """
    old, older = alt, älter = person animal thing text place
    young, younger = jung, jünger = person animal
    big, bigger = groß, größer = person animal thing food place
    small, smaller = klein, kleiner = person animal thing food place
    new, newer = neu, neuer = thing text place
    beautiful, more beautiful = schön, schöner = person animal thing text place
    tired, more tired = müde, müder = person animal
    friendly, friendlier = freundlich, freundlicher = person animal
    happy, happier = glücklich, glücklicher = person
    sad, sadder = traurig, trauriger = person animal text
    smart, smarter = klug, klüger = person animal
    hungry, hungrier = hungrig, hungriger = person animal
    strong, stronger = stark, stärker = person animal
    rich, richer = reich, reicher = person
    famous, more famous = berühmt, berühmter = person text place
    quiet, quieter = ruhig, ruhiger = person animal place
    dangerous, more dangerous = gefährlich, gefährlicher = animal
    expensive, more expensive = teuer, teurer = thing food
    cheap, cheaper = billig, billiger = thing food
    heavy, heavier = schwer, schwerer = thing
    long, longer = lang, länger = text
    interesting, more interesting = interessant, interessanter = text place
    fresh, fresher = frisch, frischer = food
    sweet, sweeter = süß, süßer = food
    broken, - = kaputt, - = thing
    red, - = rot, - = thing food
    green, - = grün, - = thing food
    blue, - = blau, - = thing
    black, - = schwarz, - = thing animal
    white, - = weiß, - = thing animal place
    brown, - = braun, - = thing animal"""

# [subjects: complements] opens a section. A complement is a German preposition (if it takes
# one), its case, and what can fill it; English has its preposition in the verb (look for).
# Leave out verbs that take their object inside (pick him up).
# base, past, participle = infinitive (prefix|verb), er-form, preterite, hat | ist participle.
VERB_TABLE = """
    [person animal]
    sleep, slept, slept = schlafen, schläft, schlief, hat geschlafen
    wait, waited, waited = warten, wartet, wartete, hat gewartet
    swim, swam, swum = schwimmen, schwimmt, schwamm, ist geschwommen
    get up, got up, gotten up = auf|stehen, steht, stand, ist aufgestanden
    fall asleep, fell asleep, fallen asleep = ein|schlafen, schläft, schlief, ist eingeschlafen
    run away, ran away, run away = weg|laufen, läuft, lief, ist weggelaufen
    [person]
    arrive, arrived, arrived = an|kommen, kommt, kam, ist angekommen
    work, worked, worked = arbeiten, arbeitet, arbeitete, hat gearbeitet
    laugh, laughed, laughed = lachen, lacht, lachte, hat gelacht
    dance, danced, danced = tanzen, tanzt, tanzte, hat getanzt
    cry, cried, cried = weinen, weint, weinte, hat geweint
    [person: accusative thing food]
    buy, bought, bought = kaufen, kauft, kaufte, hat gekauft
    sell, sold, sold = verkaufen, verkauft, verkaufte, hat verkauft
    steal, stole, stolen = stehlen, stiehlt, stahl, hat gestohlen
    hide, hid, hidden = verstecken, versteckt, versteckte, hat versteckt
    carry, carried, carried = tragen, trägt, trug, hat getragen
    [person: accusative thing text food]
    find, found, found = finden, findet, fand, hat gefunden
    look for, looked for, looked for = suchen, sucht, suchte, hat gesucht
    need, needed, needed = brauchen, braucht, brauchte, hat gebraucht
    forget, forgot, forgotten = vergessen, vergisst, vergaß, hat vergessen
    lose, lost, lost = verlieren, verliert, verlor, hat verloren
    [person: accusative thing text]
    borrow, borrowed, borrowed = aus|leihen, leiht, lieh, hat ausgeliehen
    [person: accusative text]
    write, wrote, written = schreiben, schreibt, schrieb, hat geschrieben
    [person: accusative person text]
    understand, understood, understood = verstehen, versteht, verstand, hat verstanden
    [person animal: accusative food]
    eat, ate, eaten = essen, isst, aß, hat gegessen
    [person animal: accusative person animal]
    see, saw, seen = sehen, sieht, sah, hat gesehen
    hear, heard, heard = hören, hört, hörte, hat gehört
    love, loved, loved = lieben, liebt, liebte, hat geliebt
    look at, looked at, looked at = an|sehen, sieht, sah, hat angesehen
    [person animal: accusative animal]
    chase, chased, chased = jagen, jagt, jagte, hat gejagt
    [person: accusative person]
    invite, invited, invited = ein|laden, lädt, lud, hat eingeladen
    call, called, called = an|rufen, ruft, rief, hat angerufen
    visit, visited, visited = besuchen, besucht, besuchte, hat besucht
    fetch, fetched, fetched = ab|holen, holt, holte, hat abgeholt
    ask, asked, asked = fragen, fragt, fragte, hat gefragt
    meet, met, met = treffen, trifft, traf, hat getroffen
    get to know, got to know, gotten to know = kennen|lernen, lernt, lernte, hat kennengelernt
    [person: dative person]
    help, helped, helped = helfen, hilft, half, hat geholfen
    thank, thanked, thanked = danken, dankt, dankte, hat gedankt
    trust, trusted, trusted = vertrauen, vertraut, vertraute, hat vertraut
    listen to, listened to, listened to = zu|hören, hört, hörte, hat zugehört
    answer, answered, answered = antworten, antwortet, antwortete, hat geantwortet
    [person animal: dative person animal]
    follow, followed, followed = folgen, folgt, folgte, ist gefolgt
    [thing text food place animal: dative person]
    belong to, belonged to, belonged to = gehören, gehört, gehörte, hat gehört
    [person: dative person, accusative thing text food]
    give, gave, given = geben, gibt, gab, hat gegeben
    show, showed, shown = zeigen, zeigt, zeigte, hat gezeigt
    send, sent, sent = schicken, schickt, schickte, hat geschickt
    bring, brought, brought = bringen, bringt, brachte, hat gebracht
    lend, lent, lent = leihen, leiht, lieh, hat geliehen
    [person: auf accusative person animal]
    wait for, waited for, waited for = warten, wartet, wartete, hat gewartet
    [person: an accusative person animal text place]
    think of, thought of, thought of = denken, denkt, dachte, hat gedacht
    [person: über accusative person animal text place]
    talk about, talked about, talked about = sprechen, spricht, sprach, hat gesprochen
    [person: von dative person animal place]
    dream of, dreamed of, dreamed of = träumen, träumt, träumte, hat geträumt
    [person: nach dative person thing place]
    ask about, asked about, asked about = fragen, fragt, fragte, hat gefragt
    [person: zu dative place city]
    go to, went to, gone to = gehen, geht, ging, ist gegangen
    drive to, drove to, driven to = fahren, fährt, fuhr, ist gefahren
    run to, ran to, run to = laufen, läuft, lief, ist gelaufen
    [person: in accusative place]
    come into, came into, come into = kommen, kommt, kam, ist gekommen
    [person: in dative place city]
    live in, lived in, lived in = wohnen, wohnt, wohnte, hat gewohnt"""

# Verbs of speech and thought, which take "that ..." = "dass ..."
SPEECH_TABLE = """
    [person]
    say, said, said = sagen, sagt, sagte, hat gesagt
    think, thought, thought = denken, denkt, dachte, hat gedacht
    know, knew, known = wissen, weiß, wusste, hat gewusst
    believe, believed, believed = glauben, glaubt, glaubte, hat geglaubt"""

# Verbs which take "to ..." = a zu-infinitive
CONTROL_TABLE = """
    [person]
    try, tried, tried = versuchen, versucht, versuchte, hat versucht
    forget, forgot, forgotten = vergessen, vergisst, vergaß, hat vergessen
    promise, promised, promised = versprechen, verspricht, versprach, hat versprochen
    decide, decided, decided = beschließen, beschließt, beschloss, hat beschlossen"""

# English = infinitive, er-form. An er-form without -t is also the ich-form (kann, weiß).
MODAL_TABLE = """
    can = können, kann
    must = müssen, muss
    may = dürfen, darf
    want = wollen, will"""

# Nobody does these on purpose, or is doing them just now
STATES = """
    love, need, see, hear, understand, trust, forget, lose, find
    get to know, belong to, live in"""
DOUBLED = "swim, run, get, forget"  # running: the last letter is doubled

# Forms that no rule gives: ich, du, er, wir, sie
IRREGULAR_TABLE = """
    habe = habe, hast, hat, haben, haben
    bin = bin, bist, ist, sind, sind
    werde = werde, wirst, wird, werden, werden
    sollte = sollte, solltest, sollte, sollten, sollten
    am = am, are, is, are, are
    was = was, were, was, were, were"""

# Rows: paradigms. Columns: genders, and in each nominative accusative dative genitive.
ENDING_TABLE = """
    definite  er en em es   ie ie er er   as as em es   ie ie en er
    dieser    er en em es   e  e  er er   es es em es   e  e  en er
    ein       -  en em es   e  e  er er   -  -  em es   e  e  en er
    weak      e  en en en   e  e  en en   e  e  en en   en en en en
    mixed     er en en en   e  e  en en   es es en en   en en en en
    strong    er en em en   e  e  er er   es es em en   e  e  en er
    none      -  -  -  -    -  -  -  -    -  -  -  -    -  -  -  -"""

# English = German stem, its endings, the endings of the adjective after it
DETERMINER_TABLE = """
    the = d, definite, weak
    this = dies, dieser, weak
    these = dies, dieser, weak
    every = jed, dieser, weak
    a = ein, ein, mixed
    no = kein, ein, mixed
    my = mein, ein, mixed
    your = dein, ein, mixed
    his = sein, ein, mixed
    her = ihr, ein, mixed
    our = unser, ein, mixed
    their = ihr, ein, mixed
    many = viel, dieser, strong
    some = einig, dieser, strong"""
NUMBER_TABLE = """
    two = zwei
    three = drei
    four = vier
    five = fünf
    six = sechs
    seven = sieben
    eight = acht
    nine = neun
    ten = zehn
    eleven = elf
    twelve = zwölf
    twenty = zwanzig
    thirty = dreißig
    a hundred = hundert"""

# subject, object = nominative, accusative, dative, what the verb agrees with
PRONOUN_TABLE = """
    I, me = ich, mich, mir, ich
    you, you = du, dich, dir, du
    he, him = er, ihn, ihm, er
    she, her = sie, sie, ihr, er
    we, us = wir, uns, uns, wir
    they, them = sie, sie, ihnen, sie
    who, whom = wer, wen, wem, er
    what, what = was, was, was, er"""
# Pronouns with the gender of the noun they stand for; the last column says which nouns.
# None stands for a child: German says es, which no English pronoun tells.
ANAPHOR_TABLE = """
    he, him = er, ihn, ihm, er = person masculine
    she, her = sie, sie, ihr, er = person feminine
    it, it = er, ihn, ihm, er = other masculine
    it, it = sie, sie, ihr, er = other feminine
    it, it = es, es, ihm, er = other neuter
    they, them = sie, sie, ihnen, sie = person plural, other plural"""
RELATIVE_TABLE = """
    who, whom = der, den, dem, er = person masculine
    who, whom = die, die, der, er = person feminine
    who, whom = das, das, dem, er = person neuter
    who, whom = die, die, denen, sie = person plural
    that, that = der, den, dem, er = other masculine
    that, that = die, die, der, er = other feminine
    that, that = das, das, dem, er = other neuter
    that, that = die, die, denen, sie = other plural"""
NAME_TABLE = """
    Anna = Anna, feminine
    Peter = Peter, masculine
    Maria = Maria, feminine
    Tom = Tom, masculine
    Lisa = Lisa, feminine
    Paul = Paul, masculine
    Emma = Emma, feminine
    Leon = Leon, masculine"""
CITY_TABLE = """
    Berlin = Berlin
    Paris = Paris
    London = London
    Hamburg = Hamburg
    Rome = Rom
    Vienna = Wien"""

# When, and the tenses it goes with
TIME_TABLE = """
    every day = jeden Tag = present
    in the morning = am Morgen = present future
    in the evening = am Abend = present future
    today = heute = present future can must should may want
    now = jetzt = can must should may want
    tomorrow = morgen = future can must should may want
    next week = nächste Woche = future
    soon = bald = future
    on Sunday = am Sonntag = future
    yesterday = gestern = past
    last week = letzte Woche = past
    last night = letzte Nacht = past
    a year ago = vor einem Jahr = past
    in summer = im Sommer = past
    on Friday = am Freitag = past"""
# How often: in English these stand before the verb
ADVERB_TABLE = """
    often = oft = present past
    always = immer = present past
    never = nie = present past perfect
    already = schon = perfect"""
PLACE_TABLE = """
    in = in
    behind = hinter
    in front of = vor
    next to = neben"""
# German: what a preposition and the article after it become
CONTRACTION_TABLE = """
    in dem = im
    in das = ins
    zu dem = zum
    zu der = zur
    von dem = vom"""
