"""Names written for this project, where packages have next to none; (language, kind) -> names with commas between."""

WRITTEN = {
    ("vi", "last"): (
        "Nguyễn, Trần, Lê, Phạm, Hoàng, Huỳnh, Phan, Vũ, Võ, Đặng, Bùi, Đỗ, Hồ, Ngô, Dương, Lý, Đinh, Đoàn, Trịnh, "
        "Trương, Lâm, Mai, Cao, Tạ, Thái, Lương, Châu, Vương, Tô, Hà, Đào, Kiều, Quách, Phùng, Lưu, Tống, Nghiêm, "
        "Từ"
    ),
    ("vi", "first"): (
        "Văn An, Thị Bình, Minh Châu, Quốc Cường, Thùy Dung, Anh Dũng, Tiến Đạt, Hồng Hà, Thu Hằng, Đức Hải, Thanh "
        "Hiền, Trung Hiếu, Thị Hoa, Quang Huy, Lan Hương, Gia Khánh, Đăng Khoa, Ngọc Lan, Mỹ Linh, Bảo Long, Đức "
        "Mạnh, Tuyết Mai, Hoài Nam, Kim Ngân, Bích Ngọc, Thảo Nguyên, Yến Nhi, Tấn Phát, Hoàng Phúc, Mai Phương, "
        "Minh Quân, Như Quỳnh, Thái Sơn, Chí Tâm, Phương Thảo, Quốc Thắng, Anh Thư, Thủy Tiên, Đình Toàn, Thùy "
        "Trang, Hữu Trí, Cẩm Tú, Anh Tuấn, Thanh Tùng, Thanh Vân, Quang Vinh, Tường Vy, Hải Yến, Xuân Trường, Ngọc "
        "Ánh, Diệu Linh, Khánh Vy, Hồng Nhung, An, Bình, Châu, Cường, Dung, Dũng, Đạt, Hà, Hằng, Hải, Hiền, Hiếu, "
        "Hoa, Huy, Hương, Khánh, Khoa, Lan, Linh, Long, Mạnh, Nam, Ngân, Ngọc, Nguyên, Nhi, Phát, Phúc, Phương, "
        "Quân, Quỳnh, Sơn, Tâm, Thảo, Thắng, Thư, Tiên, Toàn, Trang, Trí, Tú, Tuấn, Tùng, Vân, Vinh, Vy, Yến, "
        "Trường, Ánh, Nhung"
    ),
    ("vi", "city"): (
        "Hà Nội, Huế, Đà Nẵng, Hải Phòng, Cần Thơ, Hồ Chí Minh, Nha Trang, Đà Lạt, Vũng Tàu, Biên Hòa, Quy Nhơn, "
        "Buôn Ma Thuột, Pleiku, Vinh, Thanh Hóa, Nam Định, Thái Nguyên, Việt Trì, Hạ Long, Cẩm Phả, Bắc Ninh, Bắc "
        "Giang, Lạng Sơn, Lào Cai, Yên Bái, Điện Biên Phủ, Sơn La, Hòa Bình, Thái Bình, Ninh Bình, Hà Tĩnh, Đồng "
        "Hới, Đông Hà, Hội An, Tam Kỳ, Quảng Ngãi, Kon Tum, Tuy Hòa, Phan Rang, Phan Thiết, Bảo Lộc, Tây Ninh, Thủ "
        "Dầu Một, Mỹ Tho, Bến Tre, Trà Vinh, Vĩnh Long, Cao Lãnh, Long Xuyên, Châu Đốc, Rạch Giá, Hà Tiên, Sóc "
        "Trăng, Bạc Liêu, Cà Mau, Sa Đéc, Tân An, Uông Bí"
    ),
    ("es", "city"): (
        "Madrid, Barcelona, Valencia, Sevilla, Zaragoza, Málaga, Murcia, Palma, Bilbao, Alicante, Córdoba, "
        "Valladolid, Vigo, Gijón, Granada, Oviedo, Cartagena, Jerez de la Frontera, Pamplona, Almería, San "
        "Sebastián, Burgos, Albacete, Santander, Logroño, Badajoz, Salamanca, Huelva, Lérida, Tarragona, León, "
        "Cádiz, Jaén, Orense, Lugo, Cáceres, Gerona, Guadalajara, Toledo, Pontevedra, Palencia, Ciudad Real, "
        "Zamora, Mérida, Ávila, Cuenca, Huesca, Segovia, Soria, Teruel, Bogotá, Medellín, Lima, Arequipa, Quito, "
        "Guayaquil, Caracas, Santiago, Valparaíso, Concepción, Buenos Aires, Rosario, Mendoza, Montevideo, "
        "Asunción, La Paz, Sucre, Ciudad de México, Monterrey, Puebla, Tijuana, Oaxaca, Cancún"
    ),
    ("vi", "job"): (
        "bác sĩ, y tá, dược sĩ, giáo viên, giảng viên, kỹ sư, kỹ sư xây dựng, kỹ sư phần mềm, kiến trúc sư, luật "
        "sư, kế toán, kiểm toán viên, thư ký, nhân viên bán hàng, thu ngân, đầu bếp, phục vụ bàn, thợ may, thợ "
        "điện, thợ mộc, thợ hàn, thợ cắt tóc, công nhân, nông dân, ngư dân, lái xe, phi công, tiếp viên, thủy thủ, "
        "cảnh sát, lính cứu hỏa, bộ đội, nhà báo, phóng viên, biên tập viên, nhà văn, nhà thơ, họa sĩ, ca sĩ, nhạc "
        "sĩ, diễn viên, đạo diễn, nhiếp ảnh gia, phiên dịch viên, hướng dẫn viên, nhà khoa học, nhà nghiên cứu, thủ "
        "thư, bảo vệ, giám đốc, trưởng phòng, lập trình viên, nhân viên ngân hàng, nhân viên văn phòng"
    ),
}
