"""Words of which made-up records consist."""

from __future__ import annotations


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(word.split()) for word in text.split(","))


FIRST_NAMES = _listed(
    """
    Ada, Amir, Anneke, Arturo, Beatriz, Bjorn, Carmen, Chidi, Clara, Dariusz, Delphine, Edith, Emeka,
    Farida, Felix, Greta, Hamid, Helena, Ines, Ivo, Jamila, Joran, Katya, Kenji, Leila, Lucian, Magda,
    Mateo, Nadia, Nils, Olena, Oscar, Paloma, Petra, Quentin, Rafael, Renske, Rosa, Samir, Saskia,
    Tariq, Thea, Ulrich, Vera, Viktor, Wanda, Xenia, Yusuf, Zora
    """
)
LAST_NAMES = _listed(
    """
    Abara, Almeida, Arkwright, Bakker, Bellini, Brandt, Castellan, Cho, Corrigan, Dahl, Delacroix,
    Dumitru, Eriksen, Farouk, Fontaine, Galvan, Grigoryan, Haddad, Halloran, Hoekstra, Ibarra, Ivanov,
    Jansson, Kaminski, Kerr, Kowalczyk, Lindqvist, Lovelace, Marchetti, Mbeki, Moreau, Nakamura, Novak,
    Oduya, Okafor, Olsen, Pereira, Petrov, Quiroga, Rahman, Reyes, Rossi, Sandoval, Sato, Schreiber,
    Silva, Soderberg, Takacs, Thorne, Ueda, Vance, Varga, Vogel, Whitlock, Yilmaz, Zhang, Zielinski
    """
)
CITIES = _listed(
    """
    Aarhus, Antwerp, Bergen, Bilbao, Bratislava, Brno, Cork, Dresden, Dundee, Esbjerg, Faro, Gdansk,
    Genoa, Ghent, Graz, Izmir, Kaunas, Krakow, Leeds, Lille, Linz, Ljubljana, Lviv, Lyon, Malmo, Nantes,
    Odense, Oulu, Plovdiv, Porto, Riga, Rouen, Salzburg, Split, Tallinn, Tampere, Trieste, Turin,
    Utrecht, Valencia, Varna, Vigo, Zadar, Zagreb
    """
)
ADJECTIVES = _listed(
    """
    Amber, Ancient, Bitter, Borrowed, Broken, Copper, Distant, Drifting, Early, Empty, Endless, Fading,
    Forgotten, Frozen, Gentle, Golden, Hidden, Hollow, Iron, Last, Little, Lonely, Lost, Midnight,
    Northern, Paper, Quiet, Restless, Scarlet, Second, Secret, Silent, Silver, Slow, Southern, Stolen,
    Sudden, Unwritten, Velvet, White, Wild, Winter
    """
)
NOUNS = _listed(
    """
    Anchor, Archive, Bridge, Candle, Carousel, Cartographer, Clockmaker, Compass, Corridor, Ferry,
    Garden, Harbour, Harvest, Island, Lantern, Letter, Library, Lighthouse, Map, Mirror, Morning,
    Mountain, Orchard, Orchestra, Passenger, Piano, Port, Promise, Railway, River, Sail, Season, Shadow,
    Shore, Signal, Sparrow, Station, Summer, Telegram, Tide, Tower, Voyage, Well
    """
)
SPECIALTIES = _listed(
    """
    allergology, cardiology, dermatology, endocrinology, family medicine, gastroenterology, geriatrics,
    haematology, nephrology, neurology, oncology, ophthalmology, orthopaedics, paediatrics, pulmonology,
    radiology, rheumatology, sports medicine, urology
    """
)
PRODUCTS = _listed(
    """
    air purifier, bread maker, camera bag, coffee grinder, cordless drill, desk lamp, espresso machine,
    hand mixer, headphones, heated blanket, humidifier, kettle, label printer, mechanical keyboard,
    monitor arm, pressure cooker, rain jacket, robot vacuum, rucksack, sewing machine, soldering iron,
    standing desk, tent, trail shoes
    """
)
PURPOSES = _listed(
    """
    Heritage, Literacy, Rivers, Public Health, Open Data, Seed Saving, Rural Transport, Marine Research,
    Film Archive, Refugee Aid, Crafts, Early Music, Forestry, Astronomy, Housing, Bird Protection
    """
)
FORMS = _listed(
    """
    Foundation, Institute, Society, Trust, Alliance, Centre, Association
    """
)
